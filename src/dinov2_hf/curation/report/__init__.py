"""What a curation tells people: the summary, its page, and the card of the dataset."""
