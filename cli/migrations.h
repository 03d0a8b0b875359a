// The SQL files of migrations/, carried by the binary (generated table).
#ifndef CLI_MIGRATIONS_H
#define CLI_MIGRATIONS_H

typedef struct migration {
    int version;
    const char *name, *sql;
} migration;

extern const migration migrations[]; // ascending versions
extern const int n_migrations;

#endif
