"""Take the data of a site elsewhere: back-up and restore, and BIDS data sets of finished labels."""
