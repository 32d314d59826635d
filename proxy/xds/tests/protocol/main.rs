//! The protocol core against scripted control planes: one test for each rule of xDS it must keep, named by the rule's
//! number in the project's list of requirements.

mod delta;
mod file;
mod harness;
mod lifetime;
mod properties;
mod sotw;
mod verdicts;
mod wildcard;
