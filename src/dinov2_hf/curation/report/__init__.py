"""The report of a curation: the summary, its page, and the card of the dataset."""
