"""What is printed.

table.py      the CSV
report.py     Markdown of it, and the README's results; plots.py: pictures
targets.py    what is promised, and whether a table keeps it
compare.py    two tables against each other
"""
