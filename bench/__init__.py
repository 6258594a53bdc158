"""Closed-loop load over the OpenAI HTTP API, and the same load on llama.cpp's own server for comparison."""
