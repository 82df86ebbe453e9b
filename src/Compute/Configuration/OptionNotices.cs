namespace Megatron.Compute.Configuration;

/// <summary>
/// What a user should know about accepted options that change nothing: one line each, so that nothing is ignored in silence.
/// </summary>
public static class OptionNotices
{
    /// <summary>One line for each given option that has no effect here.</summary>
    /// <param name="given">Options that the user gave.</param>
    /// <param name="usedSections">Chapters that the verb reads.</param>
    /// <param name="verb">Name of the verb.</param>
    public static IReadOnlyList<string> For(GivenOptions given, IReadOnlySet<OptionSection> usedSections, string verb)
    {
        var notices = new List<string>();
        foreach (var option in given.Names.Select(OptionCatalog.Get))
        {
            if (!usedSections.Contains(option.Section)) notices.Add($"--{option.Name} has no effect in megatron {verb}.");
            else if (option.Effect == OptionEffect.SpeedOnly) notices.Add($"--{option.Name} has no effect here: results are the same without it.");
        }

        return notices;
    }
}
