"""Runs for other libraries: a LangChain retriever, and towers as a sentence-transformers model."""
