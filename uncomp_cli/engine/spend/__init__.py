"""Spend a budget on one text: what every head keeps, how it is read, what memory it takes."""
