// Low-rank layers on AMX tiles.

#include "tiles.h"

extern "C" int tiles_permitted() { return tiles::permitted(); }
