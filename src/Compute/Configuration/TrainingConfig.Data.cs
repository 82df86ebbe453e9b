namespace Megatron.Compute.Configuration;

using static Megatron.Compute.Configuration.OptionSection;

// Options: data (reference 2.2).
public sealed partial record TrainingConfig
{
    [Option("dataset", "Training data: [hf::|ms::]<path or id>[:<subset>][#<rows>], several allowed; files, folders and patterns of jsonl, json, csv, txt and parquet, packed or not.",
        Data)]
    public IReadOnlyList<string> Dataset { get; init; } = [];

    [Option("val_dataset", "Validation data, same notation; given, nothing is split off --dataset.", Data)]
    public IReadOnlyList<string> ValDataset { get; init; } = [];

    [Option("split_dataset_ratio", "Share of each training set that becomes validation data, 0 to 1; at least one row when above 0.", Data)]
    public double SplitDatasetRatio { get; init; } = 0.01;

    [Option("data_seed", "Seed of splitting, sampling and shuffling.", Data, DefaultFrom = "seed")]
    public int? DataSeed { get; init; }

    [Option("dataset_shuffle", "Shuffle the training rows.", Data)]
    public bool DatasetShuffle { get; init; } = true;

    [Option("val_dataset_shuffle", "Shuffle the validation rows.", Data)]
    public bool ValDatasetShuffle { get; init; }

    [Option("dataset_num_proc", "Threads that encode rows.", Data)]
    public int DatasetNumProc { get; init; } = 1;

    [Option("dataset_cache_dir", "Folder in which encoded data sets are kept, for all ranks of a node and for later runs.",
        Data, DefaultFrom = "MEGATRON_CACHE, else ~/.cache/megatron, else prepared_data in the folder of the run")]
    public string? DatasetCacheDir { get; init; }

    [Option("load_from_cache_file", "Reuse encoded rows of an earlier run; false encodes them anew, in the folder of the run.", Data)]
    public bool LoadFromCacheFile { get; init; } = true;

    [Option("shuffle_buffer_size", "Rows held for shuffling a stream.", Data)]
    public int ShuffleBufferSize { get; init; } = 1000;

    [Option("interleave_prob", "Mix data sets by these probabilities instead of one after the other.", Data)]
    public IReadOnlyList<double> InterleaveProb { get; init; } = [];

    [Option("stopping_strategy", "End of an interleaved mix: when the first or when all sets are used up.",
        Data, Choices = "first_exhausted|all_exhausted")]
    public string StoppingStrategy { get; init; } = "first_exhausted";

    [Option("columns", "JSON object source column → target column.", Data, IsJson = true)]
    public string? Columns { get; init; }

    [Option("strict", "Stop at the first bad row instead of dropping it.", Data)]
    public bool Strict { get; init; }

    [Option("remove_unused_columns", "Keep only the columns that the template reads.", Data, Effect = OptionEffect.SpeedOnly)]
    public bool RemoveUnusedColumns { get; init; } = true;

    [Option("download_mode", "Use a fetched data set again or fetch anew.", Data, Choices = "reuse_dataset_if_exists|force_redownload")]
    public string DownloadMode { get; init; } = "reuse_dataset_if_exists";

    [Option("model_name", "Name of the model in self-cognition data: Chinese and English, or one for both.", Data)]
    public IReadOnlyList<string> ModelName { get; init; } = [];

    [Option("model_author", "Author of the model in self-cognition data: Chinese and English, or one for both.", Data)]
    public IReadOnlyList<string> ModelAuthor { get; init; } = [];

    [Option("custom_dataset_info", "JSON files that register data sets.", Data)]
    public IReadOnlyList<string> CustomDatasetInfo { get; init; } = [];
}
