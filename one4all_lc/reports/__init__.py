"""Reports for people: figures as PNG and one HTML page that needs nothing beside it.

    page = Page("Experts", "Measured on 600 held-out rows.", facts, (figure, table))
    write_report(folder, page)

Figures are matplotlib's, drawn on a canvas of their own: nothing here touches pyplot or rcParams,
so that threads may draw and a notebook keeps its settings. The extra `reports` has what is needed.
"""
