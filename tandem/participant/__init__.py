"""The participant: makes any service one that can stage writes for a transaction and later publish or discard them.

A service writes a `resource.Resource`, wraps it in a `participant.Participant`, serves it by
`servicer.ParticipantServicer` and runs a `sweeper.Sweeper`. Nothing here knows what the writes are.
"""
