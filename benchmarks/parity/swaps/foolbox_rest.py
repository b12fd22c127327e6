"""The same as for the other foolbox suite."""

from .foolbox import NAMES as NAMES
