"""A server over one engine: what a client asks (exchange.py), who answers it (desk.py), and how both travel (http.py).

    POST /v1/chat/completions, /v1/completions   GET /v1/models, /metrics, /health, /

The forms are OpenAI's, so that clients made for them work; what uncomp has beside them are fields of their own.
"""
