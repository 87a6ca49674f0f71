"""Questions of everyday life that usually are nobody's: examples of what to refuse.

They are about none of the shipped experts' subjects (health, phones and cameras, queries of
tables). Yours may well be about one of theirs, so an expert is never measured against a sentence
that lies among its exemplars: `Scorer.fit` leaves those out.
"""

GENERIC = tuple(
    line.strip()
    for line in """
    Who was the first woman to fly across the Atlantic alone?
    Why did Hannibal cross the Alps with elephants?
    What started the French Revolution?
    Which pharaoh built the largest pyramid?
    When was the Berlin Wall torn down?
    Tell me about the samurai.
    What language did the Vikings speak?
    Who discovered the source of the Nile?
    Why was the Suez Canal so important?
    How many wives did Henry the Eighth have?
    Which country has the most islands?
    What is the longest river in South America?
    Is Greenland bigger than Mexico?
    Which rivers flow through Belgrade?
    Which mountains separate France from Spain?
    How deep is Lake Baikal?
    What sea lies between Sweden and Finland?
    Where is the driest desert on Earth?
    How many time zones does Russia have?
    Is Istanbul in Europe or in Asia?
    How far away is the nearest star?
    What is inside a black hole?
    Could people live on Venus?
    How long would it take to fly to Saturn?
    Why does the moon always show us the same side?
    When will the next total eclipse be?
    What is dark matter made of?
    Who was the second man on the moon?
    What is a shooting star?
    How are crystals formed?
    Why is the sea salty?
    What makes thunder so loud?
    How do submarines rise to the surface?
    Why does ice float?
    What is the boiling point of mercury?
    How does a rainbow get its colours?
    Explain entropy to a child.
    What is the difference between a meteor and a comet?
    Who invented the steam engine?
    How do bees find their way home?
    How fast can a cheetah run?
    Do penguins have knees?
    What do hedgehogs do in winter?
    Why do cats purr?
    How long do tortoises live?
    Which birds cannot fly?
    Can goldfish remember things?
    What is the biggest spider in the world?
    My dog keeps digging holes in the lawn.
    How do I train a puppy to come when called?
    What should I feed a rabbit?
    How often do I have to water a cactus?
    When should roses be pruned?
    Why are the leaves of my basil turning yellow?
    Which vegetables can I sow in autumn?
    How do I get rid of moss in the lawn?
    What kind of tree grows fastest?
    How do I build a raised bed?
    Who won the chess championship in 1972?
    How long is a marathon?
    What is the offside rule?
    Who holds the record in the long jump?
    When are the next Winter Games?
    How many players are in a rugby team?
    What is a hat trick?
    How do I improve my backhand?
    Who is the best goalkeeper of all time?
    How do I tie a climbing knot?
    Which surfboard is right for a beginner?
    What did the coach say after the final?
    Who directed Casablanca?
    How does the last season of that series end?
    Recommend a film noir from the forties.
    Which actor played the villain?
    When does the new superhero film come out?
    Is the book better than the film?
    Who wrote War and Peace?
    What is the moral of the fable of the fox and the grapes?
    Who is the murderer in the Orient Express?
    Summarise Hamlet in three sentences.
    What is a haiku?
    Write a limerick about a goat.
    Write a short story about a lighthouse keeper.
    Give me a title for my novel.
    How many strings does a harp have?
    Who composed the Moonlight Sonata?
    What key is this song in?
    How do I learn to read music?
    Which band split up in 1970?
    When was the first opera performed?
    What is the difference between a violin and a viola?
    What does a conductor actually do?
    Who painted the ceiling of the Sistine Chapel?
    What is cubism?
    How do I mix purple from primary colours?
    How do potters glaze a vase?
    Why is the tower in Pisa leaning?
    Who designed the opera house in Sydney?
    What style is this cathedral?
    How do I knit a scarf?
    How is paper made?
    Teach me to fold a paper crane.
    What is the meaning of life?
    Do we have free will?
    What did Socrates mean by knowing nothing?
    Is it ever right to lie?
    What is the golden rule?
    What do Buddhists believe about rebirth?
    When is Ramadan this year?
    Why do people knock on wood?
    Who is Zeus's brother?
    Tell me a myth about the creation of the world.
    What is a phoenix?
    Are ghosts real?
    Who is the president of Brazil?
    How does the electoral college work?
    How old must one be to vote in Austria?
    What does a prime minister do?
    Which countries are in the United Nations Security Council?
    What is inflation?
    Why do share prices fall when interest rises?
    What was the gold standard?
    How do tariffs work?
    How did that company become so big?
    Which start-ups went public last year?
    Who owns the largest shipping line?
    What is a trademark?
    Who pays for a broken window in a rented flat?
    What happens if I die without a will?
    How do I start a petition?
    What is the difference between a crime and a misdemeanour?
    Do I have to report for jury duty?
    How do I patent an invention?
    How do I become a pilot?
    What do actuaries do all day?
    How do I ask for a reference?
    Which subjects do I need to study architecture?
    How do I apply for a scholarship?
    What is the best way to learn vocabulary?
    How do I stop putting off my homework?
    Give me tips for a speech at a wedding.
    How do I introduce myself at a party?
    How do I get a toddler to eat peas?
    What are good names for a girl?
    How do I tell my children about the divorce?
    At what age can children stay at home alone?
    What games can we play on a rainy afternoon?
    How do I plan a surprise party?
    What do you give for a golden wedding?
    How do I tell somebody that I like them?
    My best friend does not talk to me any more.
    How do I say no without being rude?
    Is it normal to be nervous before a first date?
    How do I prove that the root of two is irrational?
    What is an integral good for?
    How many sides does a dodecagon have?
    What is the probability of two sixes in a row?
    Solve x squared minus nine equals zero.
    What is a prime number?
    How do I draw a perpendicular with a compass?
    What is 15 percent of 340?
    Who proved the last theorem of Fermat?
    Is zero an even number?
    What does the suffix -able mean?
    What is the plural of octopus?
    Where does the word alphabet come from?
    Is it who or whom?
    How do you say thank you in Japanese?
    How many letters does the Greek alphabet have?
    What is the hardest language to learn?
    What does the idiom to spill the beans mean?
    How do I get ink out of leather?
    How do I sharpen a chisel?
    Which paint is best for a bathroom ceiling?
    How do I hang a heavy mirror on plasterboard?
    How do I insulate the attic?
    Why does my radiator gurgle?
    How do I stop a door from squeaking?
    How do I lay parquet?
    How do I clean a chimney?
    What is the difference between a nail and a screw?
    How do I unclog a drain?
    How do I iron a shirt?
    Which shoes go with a navy suit?
    Are wide trousers in fashion again?
    How do I tie a bow tie?
    What can I wear to a garden party?
    How do I wash a wool jumper?
    How do I do a French braid?
    How is cheese made?
    Why does bread rise?
    Who invented the croissant?
    What wine goes with trout?
    What is the hottest chilli in the world?
    Is a tomato a fruit?
    Where does cinnamon come from?
    How do they get the ship into the bottle?
    How does a lock on a canal work?
    How do sailors tell the way by the stars?
    What is the fastest train in the world?
    How do hot-air balloons steer?
    Who built the first motorway?
    How do wind turbines make electricity?
    How is glass recycled?
    How much carbon does a tree take up?
    What are the causes of climate change?
    Can we still save the rain forest?
    What is a tsunami?
    How strong was the last hurricane?
    How high is the tide tomorrow?
    When do the swallows come back?
    How do I win at poker?
    What is the best opening in chess?
    How does castling work?
    What are the rules of backgammon?
    How do I solve the cube with the colours?
    Which video games came out this month?
    How do I beat the last boss?
    What are the cheat codes?
    Think of a number between one and ten.
    Give me a riddle.
    What is the secret of a magic trick with coins?
    Who will win the lottery?
    What does my star sign say?
    What does it mean to dream of falling?
    Who is the richest person alive?
    Which celebrity got married last week?
    What did the papers write about the royal family?
    Who won the talent show yesterday?
    How many followers does she have?
    How do I delete my account on that social network?
    Who founded the online encyclopedia?
    What is a blockchain?
    How does a quantum computer work?
    Will robots take our jobs?
    Can a machine think?
    How do I compile a kernel?
    Explain recursion.
    What is the difference between a stack and a heap?
    How do I undo my last commit?
    How do I centre a box on a web page?
    Who needs umbrellas made of glass?
    Draw a cat on a bicycle.
    Read me the headlines.
    Open the garage.
    Send a postcard to my aunt.
    Find a plumber near me.
    Is the library open on Mondays?
    What are the opening hours of the zoo?
    Where can I rent skis?
    How much is a ticket for the museum?
    How do I report a broken street light?
    When is the rubbish collected?
    How do I find a flat share?
    How do I register to vote?
    Where is the lost property office?
    Book me a haircut.
    How do I donate old clothes?
    Who picks up old furniture?
    I lost my keys.
    There is a strange smell in the cellar.
    The neighbours are having a party again.
    I want to become a better person.
    Nothing works today.
    Lorem ipsum dolor sit amet.
    asdf jkl
    blue
    the one from yesterday
    وزن زمین چقدر است؟
    شاهنامه را چه کسی سروده است؟
    بلندترین قله ایران کدام است؟
    جام جهانی بعدی کجا برگزار می‌شود؟
    چطور گیتار یاد بگیرم؟
    یک داستان کوتاه بگو.
    چند قاره در جهان وجود دارد؟
    چرا دریا شور است؟
    برای تولد مادرم چه بخرم؟
    Combien de temps dure un vol vers la lune ?
    Qui a peint la Joconde ?
    Quelle est la plus haute montagne du monde ?
    Comment faire pousser des tomates ?
    Raconte-moi une blague.
    Qui a gagné le match hier soir ?
    Comment s'appelle la femme du président ?
    Wie weit ist der Mond entfernt?
    Wer schrieb den Faust?
    Wie backe ich einen Apfelkuchen?
    ¿Quién descubrió América?
    ¿Cuántos habitantes tiene Madrid?
    ¿Cómo se juega al dominó?
    """.strip().splitlines()
)
