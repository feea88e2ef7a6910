"""STEER and Quark in a language whose rewards are closed forms."""
