"""Measured figures of a run -> HTML page, summary.json, decks, model card; reads artifacts, changes nothing."""
