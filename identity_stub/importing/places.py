"""Places as the files write them, as the contracts want them. Only what occurs, and its neighbours."""

from __future__ import annotations

US_STATES = {
    "Alabama": "AL", "Alaska": "AK", "Arizona": "AZ", "Arkansas": "AR", "California": "CA", "Colorado": "CO",
    "Connecticut": "CT", "Delaware": "DE", "D.C.": "DC", "District of Columbia": "DC", "Florida": "FL",
    "Georgia": "GA", "Hawaii": "HI", "Idaho": "ID", "Illinois": "IL", "Indiana": "IN", "Iowa": "IA", "Kansas": "KS",
    "Kentucky": "KY", "Louisiana": "LA", "Maine": "ME", "Maryland": "MD", "Massachusetts": "MA", "Michigan": "MI",
    "Minnesota": "MN", "Mississippi": "MS", "Missouri": "MO", "Montana": "MT", "Nebraska": "NE", "Nevada": "NV",
    "New Hampshire": "NH", "New Jersey": "NJ", "New Mexico": "NM", "New York": "NY", "North Carolina": "NC",
    "North Dakota": "ND", "Ohio": "OH", "Oklahoma": "OK", "Oregon": "OR", "Pennsylvania": "PA", "Puerto Rico": "PR",
    "Rhode Island": "RI", "South Carolina": "SC", "South Dakota": "SD", "Tennessee": "TN", "Texas": "TX",
    "Utah": "UT", "Vermont": "VT", "Virginia": "VA", "Washington": "WA", "West Virginia": "WV", "Wisconsin": "WI",
    "Wyoming": "WY",
}  # fmt: skip
"""State → postal code. In the file, "Georgia" is the state."""

COUNTRIES = {
    "Australia": "AU", "Belgium": "BE", "Bermuda": "BM", "Brazil": "BR", "Canada": "CA", "Cayman Islands": "KY",
    "China": "CN", "Denmark": "DK", "France": "FR", "Germany": "DE", "Hong Kong": "HK", "India": "IN", "Ireland": "IE",
    "Israel": "IL", "Italy": "IT", "Japan": "JP", "Luxembourg": "LU", "Mexico": "MX", "Netherlands": "NL",
    "Norway": "NO", "Panama": "PA", "Singapore": "SG", "South Korea": "KR", "Spain": "ES", "Sweden": "SE",
    "Switzerland": "CH", "Taiwan": "TW", "United Kingdom": "GB", "Uruguay": "UY",
}  # fmt: skip
"""Country → ISO 3166-1 alpha-2."""

GICS_SECTORS = {
    "Energy": "10",
    "Materials": "15",
    "Industrials": "20",
    "Consumer Discretionary": "25",
    "Consumer Staples": "30",
    "Health Care": "35",
    "Financials": "40",
    "Information Technology": "45",
    "Communication Services": "50",
    "Utilities": "55",
    "Real Estate": "60",
}
"""Sector → its two digits."""
