// Products with few rows.
#pragma once
