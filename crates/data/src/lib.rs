//! Sources, chat templates, masking, truncation, packing and batch order.
