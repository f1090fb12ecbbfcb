// The type that scripts/check-manifests holds each dashboard against: Grafana's own, with the options of each kind of
// panel. JSON has strings where Grafana's types have enums: `Plain` allows an enum's values.
import type { Dashboard, Panel, RowPanel } from "@grafana/schema";
import type { Options as Stat } from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type {
  FieldConfig as StatesField,
  Options as States,
} from "@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen";
import type {
  FieldConfig as SeriesField,
  Options as Series,
} from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";

type Plain<T> = T extends string
  ? `${T}`
  : T extends (infer Item)[]
    ? Plain<Item>[]
    : T extends object
      ? { [Key in keyof T]: Plain<T[Key]> }
      : T;

type Defaults<Custom> = Omit<NonNullable<Panel["fieldConfig"]>["defaults"], "custom"> & { custom?: Custom };

type PanelOf<Kind extends string, Options, Custom> = Omit<Panel, "type" | "options" | "fieldConfig"> & {
  type: Kind;
  options: Options;
  fieldConfig: { defaults: Defaults<Custom>; overrides: [] };
};

type AnyPanel =
  | RowPanel
  | PanelOf<"stat", Partial<Stat>, never>
  | PanelOf<"timeseries", Partial<Series>, Partial<SeriesField>>
  | PanelOf<"state-timeline", Partial<States>, Partial<StatesField>>;

type Annotation = NonNullable<NonNullable<Dashboard["annotations"]>["list"]>[number] & {
  expr: string; // how Prometheus's data source asks
  step: string;
  titleFormat: string;
};

export type Board = Plain<
  Omit<Dashboard, "annotations" | "panels"> & { annotations: { list: Annotation[] }; panels: AnyPanel[] }
>;
