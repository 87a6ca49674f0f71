"""Everyday questions of all kinds: their mean is the middle of what people ask.

Embedders put every text into a narrow cone, and a question shows what it is about only by how it
differs from the middle. The exemplars of a few experts lie to one side of that middle, those of a
single expert nowhere near it, so it is measured on these questions instead. They are no negative
examples: an expert may be about any of their subjects, for each weighs one part in 64.
"""

from one4all_lc.routing.negatives import GENERIC

QUESTIONS = (
    "What time does the pharmacy close on Sundays?",
    "How many moons does Jupiter have?",
    "Can you recommend a good novel for a long flight?",
    "Why is the sky blue?",
    "How do I get red wine out of a white tablecloth?",
    "What is the tallest building in the world?",
    "Set an alarm for half past six.",
    "What should I wear to a job interview?",
    "Who wrote the national anthem?",
    "How do I apply for a passport?",
    "Is there a train to the airport after midnight?",
    "What is the square root of 289?",
    "How much flour do I need for two loaves of bread?",
    "My neighbour's dog barks all night, what can I do?",
    "Which planet has the shortest day?",
    "How do I cancel my subscription?",
    "What does the word serendipity mean?",
    "Translate good night into Italian.",
    "When did the Second World War end?",
    "How do I keep tomatoes from rotting on the plant?",
    "Who scored the most goals last season?",
    "How does a heat pump work?",
    "Which team plays at home on Saturday?",
    "How can I save money on groceries?",
    "What is the exchange rate of the yen?",
    "My card was charged twice, how do I get a refund?",
    "Where is my parcel?",
    "Do I need a visa for Turkey?",
    "How do I teach my son to ride a bike?",
    "What are the rules of chess?",
    "Play something relaxing.",
    "What causes earthquakes?",
    "How do I write a cover letter?",
    "What is a healthy breakfast?",
    "How long should I sleep?",
    "What helps against a headache?",
    "Is it safe to run with a cold?",
    "How do I connect the printer to the network?",
    "Why is my laptop so slow?",
    "How do I back up my files?",
    "What does this error message mean?",
    "How do I make a chart from a spreadsheet?",
    "Which programming language should a beginner learn?",
    "How do I sort numbers with a loop?",
    "Is a verbal agreement binding?",
    "How much notice must I give before I move out?",
    "What taxes does a freelancer pay?",
    "How do I open a savings account?",
    "Who founded the Red Cross?",
    "What is the population of Canada?",
    "How old is the universe?",
    "What do owls eat?",
    "Why do leaves change colour?",
    "Which painter cut off his ear?",
    "How do I tune a guitar?",
    "What film won the most awards this year?",
    "Are electric cars cheaper to run?",
    "What is the speed limit on the motorway?",
    "How do I fix a dripping tap?",
    "What present could I give to my grandmother?",
    "Tell me something interesting.",
    "Thank you, that was helpful.",
    "Are you a person or a machine?",
    "What did you mean by that?",
)

EVERYDAY = tuple(dict.fromkeys((*QUESTIONS, *GENERIC)))
"""All of them, those of `negatives.py` included."""
