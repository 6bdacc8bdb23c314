//! The API of the operator: the types behind the custom resource definitions. No I/O.
pub mod v1alpha1;
