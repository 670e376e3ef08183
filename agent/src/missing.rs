//! In place of what a Cargo feature would bring: methods that say, where they are called, which feature is missing. A method that is not there is only "not found".

use crate::{Agent, Telemetry};

/// Nothing has it.
#[diagnostic::on_unimplemented(
    message = "this needs the Cargo feature `prometheus` of firstfall-agent",
    label = "only there with the feature `prometheus`",
    note = "in Cargo.toml: firstfall-agent = {{ version = \"…\", features = [\"prometheus\"] }}"
)]
pub trait FeaturePrometheus {}

#[doc(hidden)]
impl Agent {
    pub fn with_exposition(self) -> Agent
    where
        for<'a> &'a (): FeaturePrometheus,
    {
        self
    }
}

#[doc(hidden)]
impl Telemetry {
    pub fn exposition(&self) -> String
    where
        for<'a> &'a (): FeaturePrometheus,
    {
        String::new()
    }

    pub fn export_registry<R>(&self, _: R)
    where
        for<'a> &'a (): FeaturePrometheus,
    {
    }
}
