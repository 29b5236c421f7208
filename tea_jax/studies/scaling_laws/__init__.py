"""How far a scaling law can be trusted: on families of known tails, and on stored rewards."""
