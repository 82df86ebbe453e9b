using System.Text;
using Megatron.Compute.Configuration;

namespace Megatron.Client.Cli;

/// <summary>
/// <c>docs/parameters.md</c>, made from the annotations of <see cref="TrainingConfig"/> and the table of <see cref="UnsupportedValues"/>.
/// </summary>
public static class ParameterDocs
{
    private const string Introduction = """
        # Parameters

        Made by `megatron docs parameters > docs/parameters.md` from the annotations of `TrainingConfig`; do not edit.

        Names may be written with `_` or `-`. A flag may stand alone (`--finetune`), take `true|false|yes|no|1|0`, and has a `--no_x` form when its
        default is true. Lists are separated by spaces, or the option is repeated. Of several values the last wins. JSON values are given as text or
        as the path of a file. Options may stand in a YAML or JSON file, named first or with `--config`, or in a response file `@file`; the command
        line wins over the file, the file over an `args.json` beside the model or checkpoint, and that over the defaults below.

        *Today* says what a value does: **works**; **speed** (accepted; results are the same without it, and the run says so); or the values that
        can be used until the rest is built. Every other value is refused with a sentence that names it.

        ## Where this differs from Megatron-SWIFT

        - `train_iters` may be left out: it follows from `max_epochs` and the size of the data. The last evaluation and the last, incomplete
          accumulation of an epoch are not lost.
        - A float32 model trains in float32, not in float16; `fp16`, `bf16` and `torch_dtype` must agree.
        - `recompute_granularity none` exists. `sequence_parallel` without tensor parallelism is an error, not switched off silently.
        - `eval_iters -1` evaluates the validation set once. `no_log_learning_rate_to_tensorboard` is accepted.
        - `rope_scaling` takes `rope_type` or `type`, and yarn.
        - `attention_backend local` is refused; `ckpt_format torch` and `zarr` are never read or written.
        - `no_initialization` never leaves weights uninitialised: what is not loaded is drawn.
        - `date_string` fixes the date in the prompts of Llama 3.1 and later.
        - `moe_router_dtype` is fp32, as in later versions.
        - `output_dir` means `save` and `mcore_model` means `load` in `sft` and `pt`; in `export` they are options of their own.
        - `megatron pt` sets `use_chat_template false` and `loss_scale all` and refuses other values instead of overriding them.
        - Samples are always joined without padding, so `padding_free` and `padding_side` change nothing.

        """;

    /// <summary>The whole page, with line feeds.</summary>
    public static string Write()
    {
        var page = new StringBuilder(Introduction.ReplaceLineEndings("\n"));
        foreach (var section in OptionCatalog.All.GroupBy(option => option.Section))
        {
            page.Append($"\n## {HelpWriter.Title(section.Key)}\n\n| option | value | default | today | what it does |\n| --- | --- | --- | --- | --- |\n");
            foreach (var option in section)
                page.Append($"| `{option.Name}` | {Escape(HelpWriter.Kind(option))} | {Escape(HelpWriter.Default(option))} | {Today(option)} | {Escape(Help(option))} |\n");
        }

        return page.ToString();
    }

    private static string Today(OptionInfo option)
    {
        if (UnsupportedValues.LegalValues(option.Name) is { } legal)
            return "only " + string.Join(", ", legal.Select(value => value.Length == 0 ? "not given" : Escape(value)));
        return option.Effect == OptionEffect.SpeedOnly ? "speed" : "works";
    }

    private static string Help(OptionInfo option)
    {
        string[] names = [.. option.Aliases, .. option.TrainingAliases.Select(name => name + " (sft, pt)")];
        return names.Length == 0 ? option.Help : $"{option.Help} Also: {string.Join(", ", names)}.";
    }

    private static string Escape(string text) => text.Replace("|", "\\|", StringComparison.Ordinal);
}
