"""What runs in a hospital: intake, cohort, gradient worker and its link to Flower."""
