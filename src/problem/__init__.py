"""The problem: what is predicted, from what. Change here to: nothing; edit the four modules beside this file."""
