"""The nano checkpoint's recipe: speech, codec, language model, evaluation, export."""
