"""What a search varies: distributions, spaces and the ready spaces. Imports neither torch nor Ray.

The ready configurations of the command line are the YAML files in `configs/`.
"""

from search_spaces.distributions import Categorical, Distribution, Float, Int, Value
from search_spaces.ready_spaces import SPACES
from search_spaces.space import SearchSpace

__all__ = ["SPACES", "Categorical", "Distribution", "Float", "Int", "SearchSpace", "Value"]
