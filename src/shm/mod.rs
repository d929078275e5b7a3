//! Segments: layouts, opening and creating, consistent reads, writes, semaphores. Knows nothing of the network.
