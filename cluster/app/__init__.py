"""The Python form of a configuration: an app object, functions, key factories."""

from cluster.app.app_reference import load_app
from cluster.app.functions import NULL, Event
from cluster.app.harbor import Harbor
from cluster.app.keys import KeyFactory, keys

__all__ = ["NULL", "Event", "Harbor", "KeyFactory", "keys", "load_app"]
