using System.Globalization;
using Megatron.Client.Cli;
using Megatron.Compute.Configuration;

namespace Megatron.Client.Tests.Cli;

public sealed class OptionBinderTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("megatron-cli-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Theory]
    [InlineData("--tensor_model_parallel_size 2", "tensor_model_parallel_size", "2")]
    [InlineData("--tensor-model-parallel-size 2", "tensor_model_parallel_size", "2")]
    [InlineData("--tensor-model-parallel-size=2", "tensor_model_parallel_size", "2")]
    [InlineData("--lr 1.5e-3", "lr", "0.0015")]
    [InlineData("--lr=3e-4 --lr 5e-4", "lr", "0.0005")]
    [InlineData("--finetune", "finetune", "true")]
    [InlineData("--finetune true", "finetune", "true")]
    [InlineData("--finetune True", "finetune", "true")]
    [InlineData("--finetune 1", "finetune", "true")]
    [InlineData("--finetune yes", "finetune", "true")]
    [InlineData("--finetune false --finetune", "finetune", "true")]
    [InlineData("--finetune true --finetune no", "finetune", "false")]
    [InlineData("--add_version 0", "add_version", "false")]
    [InlineData("--no_add_version", "add_version", "false")]
    [InlineData("--no-add-version", "add_version", "false")]
    [InlineData("--no_add_version false", "add_version", "true")]
    [InlineData("--no_save_optim", "no_save_optim", "true")]
    [InlineData("--eval_iters -1", "eval_iters", "-1")]
    [InlineData("--dataset a b#500 c", "dataset", "a b#500 c")]
    [InlineData("--dataset a b --lr 1 --dataset c", "dataset", "a b c")]
    [InlineData("--recompute_modules mlp", "recompute_modules", "mlp")]
    [InlineData("--interleave_prob 0.25 0.75", "interleave_prob", "0.25 0.75")]
    [InlineData("--optimizer SGD", "optimizer", "sgd")]
    [InlineData("--num_train_epochs 3", "max_epochs", "3")]
    [InlineData("--save_steps 7", "save_interval", "7")]
    [InlineData("--output_dir out", "save", "out")]
    [InlineData("--mcore-model in", "load", "in")]
    [InlineData("--columns {\"a\":1}", "columns", "{\"a\":1}")]
    [InlineData("--extra_megatron_kwargs {\"lr\":2,\"no_add_version\":true} --lr 1", "lr", "2")]
    public void Read_CommandLine_GivesTheValue(string line, string name, string expected)
    {
        var given = Sft(line.Split(' '));
        Assert.Empty(given.Errors);
        Assert.Equal(expected, OptionCatalog.Get(name).Format(given.Values[name]));
    }

    [Fact]
    public void Read_ValueWithSpacesAndNewlines_IsKept() =>
        Assert.Equal("You are\n a pirate -- arr", Sft("--system", "You are\n a pirate -- arr").Values["system"]);

    [Fact]
    public void Read_OutputDirUnderExport_IsAnOptionOfItsOwn()
    {
        var verb = Verb.All.Single(verb => verb.Name == "export");
        var (given, _) = OptionBinder.Read(CommandGrammar.Cut(verb, ["export", "--output_dir", "x", "--mcore_model", "y"]));
        Assert.Equal("x", given.Values["output_dir"]);
        Assert.Equal("y", given.Values["mcore_model"]);
        Assert.DoesNotContain("save", given.Values.Keys);
    }

    [Fact]
    public void Read_GermanCulture_NumbersAreInvariant()
    {
        var culture = CultureInfo.CurrentCulture;
        try
        {
            CultureInfo.CurrentCulture = CultureInfo.GetCultureInfo("de-DE");
            Assert.Equal(1.5e-3, Sft("--lr", "1.5e-3").Values["lr"]);
            Assert.Single(Sft("--lr", "1,5e-3").Errors);
        }
        finally
        {
            CultureInfo.CurrentCulture = culture;
        }
    }

    [Fact]
    public void Read_SeveralMistakes_AllAreReported() => Assert.Equal(
        [
            "CFG012 The word surplus belongs to no option; give options as --name value, or a configuration file first.",
            "CFG001 --lrr is not an option; did you mean --lr?",
            "CFG003 --lr = abc cannot be read; give one number such as 0.1 or 1e-5.",
            "CFG003 --train_iters = 99999999999 cannot be read; give one whole number from -2147483648 to 2147483647.",
            "CFG003 --finetune = maybe cannot be read; give true or false.",
            "CFG003 --optimizer = lion is not known; choose adam or sgd.",
            "CFG003 --model = (nothing) cannot be read; give one text.",
            "CFG003 --columns = nope.json is neither JSON nor a file that exists; give a JSON object or list, or the path of one.",
        ],
        Sft("surplus", "--lrr=3", "--lr", "abc", "--train_iters", "99999999999", "--finetune", "maybe", "--optimizer", "lion", "--model", "--columns", "nope.json")
            .Errors.Select(error => error.ToString()));

    [Fact]
    public void Read_IgnoreArgsError_UnknownOptionsBecomeNotices()
    {
        var given = Sft("--vit_lr", "3", "--ignore_args_error", "true");
        Assert.Empty(given.Errors);
        Assert.Contains("--vit_lr is not an option", Assert.Single(given.Notices), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("yaml", false)]
    [InlineData("yml", true)]
    public void Read_YamlFile_CommandLineWinsOverIt(string extension, bool positional)
    {
        var file = File(extension, """
            model: models/qwen   # a comment
            dataset: [a.jsonl, b.jsonl#500]
            lr: 1e-4
            finetune: yes
            system: "two\nlines"
            template: null
            extra_megatron_kwargs:
              clip_grad: 0.5
            ENV:
              NPROC_PER_NODE: 2
              FOO: bar
            """);
        var arguments = positional ? new[] { "sft", file, "--lr", "2e-4" } : ["sft", "--lr", "2e-4", "--config", file];
        var (given, environment) = OptionBinder.Read(CommandGrammar.Cut(Verb.All[0], arguments));
        Assert.Empty(given.Errors);
        Assert.Equal(["a.jsonl", "b.jsonl#500"], Assert.IsAssignableFrom<IReadOnlyList<string>>(given.Values["dataset"]));
        Assert.Equal(2e-4, given.Values["lr"]);
        Assert.Equal(0.5, given.Values["clip_grad"]);
        Assert.Equal(true, given.Values["finetune"]);
        Assert.Equal("two\nlines", given.Values["system"]);
        Assert.DoesNotContain("template", given.Values.Keys);
        Assert.Equal("2", Assert.Single(environment).Value);
        Assert.Equal($"{file} line 11: ENV.FOO has no effect; set it in the shell if a library needs it.", Assert.Single(given.Notices));
    }

    [Fact]
    public void Read_YamlWithMistakes_NamesFileAndLine()
    {
        var file = File("yaml", "lr: 1\nlrr: 2\ntrain_iters: [1, 2]\nseed: {a: 1}\n");
        Assert.Equal(
            [
                $"CFG001 {file} line 2: --lrr is not an option; did you mean --lr?",
                $"CFG003 {file} line 3: --train_iters = [1, 2] cannot be read; give one whole number from -2147483648 to 2147483647.",
                $"CFG003 {file} line 4: --seed = a map or a list of lists cannot be read; give one whole number from -2147483648 to 2147483647.",
            ],
            Sft(file).Errors.Select(error => error.ToString()));
    }

    [Theory]
    [InlineData("- a\n- b\n", "is no map of options")]
    [InlineData("a: b\n---\nc: d\n", "holds 2 documents")]
    [InlineData("lr: 1\nlr: 2\n", "line 2: Duplicate key")]
    [InlineData("lr: [1\n", "line 2:")]
    [InlineData("model_kwargs: &x {a: *x}\n", "line 1:")]
    public void Read_YamlThatCannotBeUsed_IsOneSentence(string text, string part)
    {
        var error = Assert.Single(Sft(File("yaml", text)).Errors);
        Assert.Contains(part, error.Message, StringComparison.Ordinal);
        Assert.DoesNotContain('\n', error.Message);
    }

    [Fact]
    public void Read_YamlBillionLaughs_IsRefused()
    {
        var text = "a0: &a0 [x, x]\n" + string.Concat(Enumerable.Range(1, 28).Select(i => $"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n")) + "model_kwargs: *a28\n";
        var errors = Sft(File("yaml", text)).Errors;
        Assert.Contains(errors, error => error.Message.Contains("--model_kwargs is nested more than", StringComparison.Ordinal));
    }

    [Fact]
    public void Read_ArgsJsonAsConfig_RoundTrips()
    {
        var config = new TrainingConfig { Lr = 0.25, Dataset = ["ä b.jsonl"], Columns = "{\"a\":\"😀\"}" };
        var given = Sft(File("json", config.ToJson()));
        Assert.Empty(given.Errors);
        Assert.Equal(config, OptionCatalog.With(new TrainingConfig(), given.Values));
    }

    [Fact]
    public void Read_JsonOptionAsFile_TakesItsContent() =>
        Assert.Equal("{\"a\":\"b\"}", Sft("--columns", File("json", "{ \"a\": \"b\" }")).Values["columns"]);

    [Fact]
    public void Read_ResponseFile_IsSplicedIn()
    {
        var file = File("rsp", "# options\n--lr 3e-4\n--system \"two words\"\n");
        var given = Sft("@" + file, "--seed", "7");
        Assert.Equal(3e-4, given.Values["lr"]);
        Assert.Equal("two words", given.Values["system"]);
        Assert.Equal(7, given.Values["seed"]);
    }

    [Fact]
    public void Read_EveryOption_IsKnownInBothSpellings()
    {
        foreach (var option in OptionCatalog.All.Where(option => !OptionCatalog.All.Any(other => other.TrainingAliases.Contains(option.Name))))
        {
            var value = option.Format(option.Default) is { Length: > 0 } text ? (option.Kind == OptionKind.Text ? [text] : text.Split(' '))
                : option.Choices.Count > 0 ? [option.Choices[0]]
                : option.Kind switch { OptionKind.Flag => ["true"], OptionKind.Json => ["{}"], _ => new[] { "1" } };
            foreach (var spelling in option.Aliases.Append(option.Name).SelectMany(name => new[] { name, name.Replace('_', '-') }))
            {
                var given = Sft(["--" + spelling, .. value]);
                Assert.Empty(given.Errors);
                Assert.Equal([option.Name], given.Values.Keys);
            }
        }
    }

    private static GivenValues Sft(params string[] arguments) => OptionBinder.Read(CommandGrammar.Cut(Verb.All[0], ["sft", .. arguments])).Given;

    private string File(string extension, string text)
    {
        var path = Path.Combine(_folder, $"file.{extension}");
        System.IO.File.WriteAllText(path, text);
        return path;
    }
}
