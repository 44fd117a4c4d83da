"""What is measured, drawn and kept while a run goes on."""
