"""How fast it is, each figure beside its yardstick from the same run: `python -m lab.bench`.

house.py: servers and processes. signups.py: the product's and the naive way to sign somebody up. imports.py: the import
of files, through identity. backfills.py, reconciles.py: the migration of old accounts. raw.py: the same statements by C
programs and by psycopg2, without any protocol.
measures.py: what is measured, and against what.
"""
