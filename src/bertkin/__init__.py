"""bertkin: language models of the BERT and GPT family, grown from raw text on the machine you have."""
