//! The node as its users meet it: the real binary, real stores, real engines.

mod admin;
mod async_queries;
mod bad_input;
mod checkpoints;
mod cli;
mod durability;
mod flight;
mod gateway;
mod history;
mod kills;
mod loads;
mod loss;
mod model;
mod orphans;
mod outages;
mod past;
mod published;
mod recovery;
mod seaweed;
mod server;
mod sessions;
mod stops;
mod stores;
mod streams;
mod takeover;
mod wire;
