"""Ways of reading past the trained length, measured on the user's text; answers that risk is calibrated on."""
