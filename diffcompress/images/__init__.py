"""Images and prompts of the user's: folders, data sets on the Hub, captions."""
