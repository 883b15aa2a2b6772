"""What the fine-tuning minimises: one module a method, one interface (`base.Method`)."""

from trainers.methods.base import Batch, Loss, Method, check_method_fits
from trainers.methods.fine_tuning import FineTuning
from trainers.methods.lipsum import LipsumFineTuning

__all__ = ["Batch", "FineTuning", "LipsumFineTuning", "Loss", "Method", "check_method_fits"]
