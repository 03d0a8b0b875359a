# The binary carries migrations/*.sql.
MIGRATIONS := $(sort $(wildcard migrations/*.sql))
$(B)/gen/migrations.c: $(MIGRATIONS) tools/embed_migrations.sh
	@mkdir -p $(@D)
	tools/embed_migrations.sh $(MIGRATIONS) > $@.new && mv $@.new $@
$(B)/obj/cli/migrations.o: $(B)/gen/migrations.c $(MIGRATIONS)
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -c $< -o $@
EXTRA_OBJ_cli := $(B)/obj/cli/migrations.o
