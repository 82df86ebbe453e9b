using Megatron.Client.Cli;
using Megatron.Compute.Configuration;
using Megatron.Testing;

namespace Megatron.Client.Tests.Cli;

public sealed class MegatronCliTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("megatron-cli-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Theory]
    [InlineData("sfft", "error: CFG013 sfft is not a verb; did you mean sft?")]
    [InlineData("jobs forget", "error: CFG012 megatron jobs forget is not known; use megatron jobs ")]
    [InlineData("jobs show a", "error: CFG008 --cluster is missing; give redis://host:port of the cluster's Redis.")]
    [InlineData("jobs show a --clutser x", "error: CFG001 --clutser is not an option of this verb; did you mean --cluster?")]
    [InlineData("jobs show a --cluster", "error: CFG003 --cluster has no value; give redis://host:port.")]
    [InlineData("jobs show a --cluster http://x", "error: CFG060 --cluster = http://x is no address of a Redis server; give redis://host:port.")]
    [InlineData("jobs show a --cluster redis://u:secret@h/x", "error: CFG060 --cluster = …@h/x is no address of a Redis server; give redis://host:port.")]
    [InlineData("jobs show a --cluster redis://127.0.0.1:1", "error: CTRL001 Redis at redis://127.0.0.1:1/0?cluster=megatron cannot be reached; start it, or correct the address given with --cluster.")]
    [InlineData("silo here", "error: CFG012 megatron silo here is not known; give options as --name value.")]
    [InlineData("silo --cluster redis://127.0.0.1:1 --silo_devices 1-0", "error: CFG003 --silo_devices = 1-0 cannot be read; give device numbers such as 0,1 or 0-3.")]
    [InlineData("silo --cluster redis://127.0.0.1:1 --silo_devices 0 --node_name a/b", "error: CFG005 --node_name = a/b is no name; use letters, digits, '-', '_' and '.'.")]
    [InlineData("silo --cluster redis://127.0.0.1:1 --silo_devices 0", "error: CTRL001 Redis at redis://127.0.0.1:1/0?cluster=megatron cannot be reached; start it, or correct the address given with --cluster.")]
    [InlineData("test", "error: CFG014 megatron test runs only from a checkout; use ./megatron test or dotnet test there.")]
    [InlineData("completion fish", "error: CFG012 megatron completion fish is not known; use megatron completion bash or zsh.")]
    [InlineData("export --model .", "error: CFG008 --to_mcore and --to_hf are both missing; give one of them.")]
    [InlineData("verify", "error: CFG008 --golden is missing; give the folder that holds golden.json.")]
    [InlineData("sft @missing.rsp", "error: CFG011 The response file missing.rsp cannot be read")]
    [InlineData("sft --config missing.yaml", "error: CFG011 The configuration file missing.yaml cannot be read")]
    [InlineData("sft --system missing.txt", "error: CFG011 --system = missing.txt cannot be read")]
    [InlineData("pt --use_chat_template true", "error: CFG006 --use_chat_template = true does not go with megatron pt")]
    [InlineData("pt --loss_scale last_round", "error: CFG006 --loss_scale = last_round does not go with megatron pt")]
    [InlineData("sft --dataset a --model . --train_iters 1 --push_to_hub", "error: CFG004 --push_to_hub = true is not supported yet; use false.")]
    public async Task RunAsync_BadInput_IsOneSentenceAndExitCode2(string line, string start)
    {
        var (code, _, error) = await Run(line.Split(' '));
        Assert.Equal(ExitCode.BadInput, code);
        var only = Assert.Single(error.Split('\n', StringSplitOptions.RemoveEmptyEntries));
        Assert.StartsWith(start, only, StringComparison.Ordinal);
        Assert.DoesNotContain("   at ", error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task RunAsync_ManyMistakes_OneLineEach()
    {
        var (code, _, error) = await Run("sft", "--lr", "-1", "--fp16", "--bf16", "--micro_batch_size", "0");
        Assert.Equal(ExitCode.BadInput, code);
        Assert.Equal(
            ["CFG008", "CFG008", "CFG008", "CFG005", "CFG005", "CFG006"],
            error.Split('\n', StringSplitOptions.RemoveEmptyEntries).Select(line => line.Split(' ')[1]));
    }

    [Fact]
    public async Task RunAsync_SpeedOnlyOrForeignOption_SaysSoInOneLine()
    {
        var (_, output, _) = await Run("sft", "--no_rope_fusion", "--temperature", "0.5", "--lr", "1e-4");
        Assert.Equal(
            ["note: --no_rope_fusion has no effect here: results are the same without it.", "note: --temperature has no effect in megatron sft."],
            output.Split('\n', StringSplitOptions.RemoveEmptyEntries));
    }

    [Fact]
    public async Task RunAsync_UnexpectedFailure_IsOneLineAndNamesTheDetails()
    {
        var console = new CommandConsole(new StringWriter(), new StringWriter());
        var cli = new MegatronCli(console, _ => throw new InvalidOperationException("first\nsecond"), TimeProvider.System);
        Assert.Equal(ExitCode.Failed, await cli.RunAsync(["sft"], default));
        var line = Assert.Single((console.Error.ToString() ?? "").Split('\n', StringSplitOptions.RemoveEmptyEntries));
        Assert.StartsWith("error: ERR001 InvalidOperationException: first second (details: ", line, StringComparison.Ordinal);
        var details = line[(line.IndexOf("details: ", StringComparison.Ordinal) + 9)..^1];
        Assert.Contains("   at ", await File.ReadAllTextAsync(details), StringComparison.Ordinal);
        File.Delete(details);
    }

    [Fact]
    public async Task RunAsync_Help_ListsVerbsAndOptionsBySection()
    {
        var (code, verbs, _) = await Run("--help");
        Assert.Equal(ExitCode.Ok, code);
        Assert.Contains("quickstart", verbs, StringComparison.Ordinal);
        Assert.DoesNotContain("  docs", verbs, StringComparison.Ordinal);
        var (_, help, _) = await Run("sft", "--help");
        Assert.True(help.IndexOf("Learning rate", StringComparison.Ordinal) < help.IndexOf("--min_lr", StringComparison.Ordinal));
        Assert.DoesNotContain("--temperature", help, StringComparison.Ordinal);
        foreach (var option in OptionCatalog.All.Where(option => Verb.All[0].Sections.Contains(option.Section)))
            Assert.Contains("--" + option.Name, help, StringComparison.Ordinal);
    }

    [Fact]
    public async Task RunAsync_Version_IsANumber() => Assert.Matches(@"^\d+\.\d+\.\d+\n$", (await Run("--version")).Output);

    [Fact]
    public async Task RunAsync_Suggest_CompletesNamesAndValues()
    {
        Assert.Contains("--load_args", (await Run("[suggest:9]", "sft --loa")).Output, StringComparison.Ordinal);
        Assert.Contains("bfloat16", (await Run("[suggest:18]", "sft --torch_dtype ")).Output, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("bash")]
    [InlineData("zsh")]
    public async Task RunAsync_Completion_PrintsAScript(string shell) =>
        Assert.Contains("_megatron megatron", (await Run("completion", shell)).Output, StringComparison.Ordinal);

    [Fact]
    public async Task ParameterDocs_File_EqualsTheAnnotations()
    {
        var (_, page, _) = await Run("docs", "parameters");
        var file = await File.ReadAllTextAsync(Path.Combine(Repository.Root, "docs", "parameters.md"));
        Assert.True(file == page, "docs/parameters.md is out of date: run  megatron docs parameters > docs/parameters.md");
    }

    [Fact]
    public void Complete_ArgsJsonBesideTheModel_FillsWhatWasNotGiven()
    {
        ArgsFile.Write(_folder, new TrainingConfig { Template = "qwen3", System = "Be brief.", TorchDtype = "bfloat16" });
        var config = ConfigResolution.Complete(new TrainingConfig { Model = _folder, Save = "out" }, "sft", new GivenOptions(["model", "save"]));
        Assert.Equal("Be brief.", config.System);
        Assert.Equal("qwen3", config.Template);
        Assert.Equal(Path.GetFullPath("out"), config.Save);
    }

    [Fact]
    public void Complete_SystemText_ComesFromFileOrIsUnescaped()
    {
        var file = Path.Combine(_folder, "system.txt");
        File.WriteAllText(file, "from\nfile\\n");
        Assert.Equal("from\nfile\\n", ConfigResolution.Complete(new TrainingConfig { System = file }, "sft", GivenOptions.None).System);
        Assert.Equal("a\nb", ConfigResolution.Complete(new TrainingConfig { System = "a\\nb" }, "sft", GivenOptions.None).System);
    }

    [Fact]
    public void Complete_Pt_IsPlainTextWithLossOnAllTokens()
    {
        var config = ConfigResolution.Complete(new TrainingConfig(), "pt", GivenOptions.None);
        Assert.Equal(new TrainingConfig { UseChatTemplate = false, LossScale = "all" }, config);
    }

    private static async Task<(int Code, string Output, string Error)> Run(params string[] arguments)
    {
        var console = new CommandConsole(new StringWriter { NewLine = "\n" }, new StringWriter { NewLine = "\n" });
        var code = await new MegatronCli(console, _ => null, TimeProvider.System).RunAsync(arguments, default);
        return (code, console.Out.ToString() ?? "", console.Error.ToString() ?? "");
    }
}
