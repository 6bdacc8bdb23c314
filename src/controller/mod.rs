//! The controller: gather, validate, plan, apply, status.
