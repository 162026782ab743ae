"""Events for other services, written with the step that caused them."""
