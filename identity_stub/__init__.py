"""The identity process: users, businesses and invitations as accounts; a small but honest initiator.

`signup.py` holds the use cases, `bulk.py` many sign-ups at once, `provisioning/` how an account and its profile come
into being together, `servicer.py` the gRPC face, `explain.py` one signup's story on both sides, `importing/` the import
of files; `app.py` wires.
"""
