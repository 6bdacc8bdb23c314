//! From a validated sandbox to the objects that contain it. Pure: no I/O, no clock, no client.
