"""Parts of the speech demo: a small transducer trained on recorded telephone prompts."""
