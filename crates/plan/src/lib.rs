//! The bill: memory by category, traffic, disk, and the choice under a budget.
