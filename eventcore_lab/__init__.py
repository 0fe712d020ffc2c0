"""eventcore_lab: how fast is an event store, how far does it go, what holds it back, and was it still correct?"""
