"""Language: models of text, translation, summarisation."""
