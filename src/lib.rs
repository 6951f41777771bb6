#![doc = include_str!("README.md")]

pub mod cli;
pub mod command;
pub mod dump;
pub mod error;
pub mod fault;
pub mod image;
pub mod inject;
pub mod proc;
pub mod ptrace;
pub mod resource;
pub mod restart;
pub mod rights;
pub mod serve;
pub mod settings;
