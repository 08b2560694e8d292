"""From several models, or several adapters, to one: functions of parameter trees."""
